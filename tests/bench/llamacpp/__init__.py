"""The peer llama.cpp: built into an environment of its own, fed our weights as GGUF, driven over a pipe."""
