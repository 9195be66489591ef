"""Refusals of the durable job; the class is the accounts app's, so that every edge catches one."""

from __future__ import annotations

from chatproject.accounts.errors import Refused
from chatproject.contract.errors import Refusal

__all__ = ["Refusal", "Refused"]
