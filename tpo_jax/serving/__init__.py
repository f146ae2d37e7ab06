"""An HTTP server in the shape of OpenAI's, and a page to ask videos questions."""
