"""All that both sides know: names, messages, frames, errors and how the broker is spoken to.

Standard library only. The web side and the worker side meet here and nowhere else.
"""
