"""The formats of requests and responses, by the service that they come from."""
