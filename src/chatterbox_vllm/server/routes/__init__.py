"""The server's addresses, a module for each kind of client."""
