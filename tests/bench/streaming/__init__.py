"""The streaming plane under load, beside a bare SSE server and the usual Channels recipe."""
