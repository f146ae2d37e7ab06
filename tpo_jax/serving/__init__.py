"""An HTTP server with OpenAI's chat API, and a page for questions about videos."""
