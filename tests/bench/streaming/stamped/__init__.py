"""Put on PYTHONPATH by the streaming benchmark."""
