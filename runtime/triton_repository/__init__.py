"""Model repositories for the Triton Inference Server: the files, and what its Python backend runs."""
