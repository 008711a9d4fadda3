"""An HTTP server with the interface of the OpenAI API over one engine. Needs the extra `server`."""
