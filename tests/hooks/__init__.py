"""Changes to the service that tests make from outside, in its own processes."""
