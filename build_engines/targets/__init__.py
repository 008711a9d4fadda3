"""One module a target: step graphs in, engine files out."""
