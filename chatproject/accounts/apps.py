"""The accounts app."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Users, plans, quotas, the ledger and API keys."""

    name = "chatproject.accounts"
    label = "accounts"
    verbose_name = "Accounts and limits"
