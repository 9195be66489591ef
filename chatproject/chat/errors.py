"""Refusals of the chat app; the class is the accounts app's, so that every edge catches one."""

from __future__ import annotations

from chatproject.generations.errors import Refusal, Refused

__all__ = ["Refusal", "Refused"]
