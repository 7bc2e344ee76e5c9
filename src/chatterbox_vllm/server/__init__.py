"""The HTTP server: OpenAI's speech API, and what other clients of speech servers ask for."""
