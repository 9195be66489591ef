"""Pages of one's own account: sign in and up, settings (keys, password, today's use), the last two weeks.

A new key is shown in the answer to the request that made it, and nowhere else ever.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login, update_session_auth_hash
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from chatproject.accounts import keys, quotas, ratelimits
from chatproject.accounts.errors import Refused
from chatproject.accounts.forms import KeyForm, PasswordForm, SignInForm, SignUpForm
from chatproject.accounts.models import DailyUse, User

USAGE_DAYS = 14
SIGN_IN_TRIES = 30  # in a row without a good one, per name and address
SIGN_IN_WINDOW_S = 300
SIGN_UPS = 60  # accounts per address, which a whole office may share
SIGN_UP_WINDOW_S = 3600


class SignInView(LoginView):
    """Sign in; who is signed in already goes on to the chat."""

    template_name = "registration/login.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Say whether the page offers an account."""
        return super().get_context_data(**kwargs) | {"is_signup_open": settings.SIGNUP != "closed"}

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Take a try, unless there were too many for this name from this address."""
        try:
            ratelimits.check(name="sign-in", who=self._who(), limit=SIGN_IN_TRIES, window_s=SIGN_IN_WINDOW_S)
        except Refused as refused:
            # An unbound form: a bound one would check the password all the same.
            context = self.get_context_data(form=SignInForm(request), refused=refused.message)
            return self.render_to_response(context, status=429)
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        """Sign in, and forget the tries before."""
        ratelimits.forgive(name="sign-in", who=self._who())
        return super().form_valid(form)

    def _who(self) -> str:
        return f"{_address(self.request)} {self.request.POST.get('username', '')[:150].lower()}"


@never_cache
@sensitive_post_parameters("password1", "password2")
@require_http_methods(["GET", "POST"])
def sign_up(request: HttpRequest) -> HttpResponse:
    """Make an account and go on signed in; closed by SIGNUP=closed."""
    if request.user.is_authenticated:
        return redirect("chat")
    if settings.SIGNUP == "closed":
        return render(request, "registration/signup_closed.html", status=403)
    form = SignUpForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            ratelimits.check(name="sign-up", who=_address(request), limit=SIGN_UPS, window_s=SIGN_UP_WINDOW_S)
        except Refused as refused:
            return render(request, "registration/signup.html", {"form": form, "refused": refused.message}, status=429)
        login(request, form.save(), backend="django.contrib.auth.backends.ModelBackend")
        return redirect("chat")
    return render(request, "registration/signup.html", {"form": form}, status=400 if form.errors else 200)


@never_cache
@login_required
@require_GET
def settings_page(request: HttpRequest) -> HttpResponse:
    """Show keys, today's use against the limits, password and theme."""
    return _settings(request)


@never_cache
@login_required
@require_POST
def create_key(request: HttpRequest) -> HttpResponse:
    """Make a key and show it, this once."""
    form = KeyForm(request.POST)
    if not form.is_valid():
        return _settings(request, status=400, key_form=form)
    try:
        key, plaintext = keys.create(user=_user(request), name=form.cleaned_data["name"])
    except Refused as refused:
        form.add_error("name", refused.message)
        return _settings(request, status=400, key_form=form)
    return _settings(request, new_key=plaintext, new_key_name=key.name)


@never_cache
@login_required
@require_POST
def revoke_key(request: HttpRequest, key_id: uuid.UUID) -> HttpResponse:
    """Revoke one of the user's keys; it stops working at once."""
    try:
        keys.revoke(user=_user(request), key_id=key_id)
    except Refused:
        return render(request, "404.html", {"what": "key"}, status=404)
    messages.success(request, "The key is revoked: it no longer works.")
    return redirect("settings")


@never_cache
@sensitive_post_parameters("old_password", "new_password1", "new_password2")
@login_required
@require_POST
def change_password(request: HttpRequest) -> HttpResponse:
    """Change the password and stay signed in here; other browsers are signed out."""
    form = PasswordForm(_user(request), request.POST)
    if not form.is_valid():
        return _settings(request, status=400, password_form=form)
    update_session_auth_hash(request, form.save())
    messages.success(request, "Your password is changed. Other browsers are signed out.")
    return redirect("settings")


@never_cache
@login_required
@require_GET
def usage(request: HttpRequest) -> HttpResponse:
    """Show the last two weeks, one row per UTC day, days without use too."""
    today = timezone.now().date()
    first = today - timedelta(days=USAGE_DAYS - 1)
    uses = {use.day: use for use in DailyUse.objects.filter(user=_user(request), day__gte=first)}
    days = [today - timedelta(days=back) for back in range(USAGE_DAYS)]
    rows = [uses.get(day) or DailyUse(day=day) for day in days]
    most = max((row.tokens_used for row in rows), default=0)
    totals = {
        "tokens": sum(row.tokens_used for row in rows),
        "gpu_seconds": sum(row.gpu_seconds_used for row in rows),
        "generations": sum(row.generations for row in rows),
    }
    return render(request, "accounts/usage.html", {"rows": rows, "most": most, "totals": totals, "today": today})


def _address(request: HttpRequest) -> str:
    return str(request.META.get("REMOTE_ADDR", ""))


def _user(request: HttpRequest) -> User:
    assert isinstance(request.user, User)
    return request.user


def _settings(request: HttpRequest, *, status: int = 200, **changed: Any) -> HttpResponse:
    user = _user(request)
    use = quotas.use_today(user)
    context = {
        "keys": user.api_keys.filter(revoked_at=None),
        "use": use,
        "held_seconds": round(use.gpu_seconds_reserved, 1),
        "key_form": KeyForm(),
        "password_form": PasswordForm(user),
    }
    return render(request, "accounts/settings.html", context | changed, status=status)
