"""Forms of the account pages: sign up, name a key, change the password.

Django's own forms with the browser's hints (autocomplete) and the plan that new accounts get.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm, UserCreationForm

from chatproject.accounts.models import Plan, User

# Generic to the type checker only.
if TYPE_CHECKING:
    _UserCreationForm = UserCreationForm[User]
else:
    _UserCreationForm = UserCreationForm


class SignInForm(AuthenticationForm):
    """Name and password; the error says nothing about which of them was wrong."""

    error_messages = {
        "invalid_login": "This name and password do not belong together. Both are case-sensitive.",
        "inactive": "This account is switched off. Ask whoever runs this service.",
    }


class SignUpForm(UserCreationForm):  # type: ignore[type-arg]
    """A new account on the default plan."""

    class Meta:
        model = User
        fields = ("username",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].label = "Name"
        self.fields["username"].help_text = "Letters, digits and @ . + - _"
        self.fields["password1"].help_text = "At least 8 characters, and not a common password."
        self.fields["password2"].label = "Password again"
        self.fields["password2"].help_text = ""

    def save(self, commit: bool = True) -> User:
        """Store the account with the plan that new accounts get."""
        self.instance.plan = Plan.objects.filter(is_default=True).first()
        return super().save(commit=commit)


class KeyForm(forms.Form):
    """The name of a new API key."""

    name = forms.CharField(
        max_length=80,
        label="Name of the key",
        widget=forms.TextInput(attrs={"placeholder": "for example: my laptop", "autocomplete": "off"}),
    )


class PasswordForm(PasswordChangeForm):
    """Old password, new one twice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["old_password"].widget.attrs.pop("autofocus", None)
        self.fields["old_password"].label = "Password now"
        self.fields["new_password1"].label = "New password"
        self.fields["new_password1"].help_text = "At least 8 characters, and not a common password."
        self.fields["new_password2"].label = "New password again"
        self.fields["new_password2"].help_text = ""
