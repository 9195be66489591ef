"""Users, plans, keys and the ledger in the admin: what operators change, and what they only look at."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from chatproject.accounts import keys, quotas
from chatproject.accounts.errors import Refused
from chatproject.accounts.models import ApiKey, DailyUse, Plan, Reservation, UsageRecord, User
from chatproject.accounts.quotas import UseToday
from chatproject.accounts.readonly_admin import ReadOnlyAdmin, amount
from chatproject.accounts.signals import user_leaving

admin.site.site_header = admin.site.site_title = "chatproject"
admin.site.index_title = "Administration"
admin.site.empty_value_display = "-"

_LIMITS = ("requests_per_minute", "tokens_per_day", "gpu_seconds_per_day", "concurrent")
_RIGHTS = ("is_staff", "is_superuser", "groups", "user_permissions")


@admin.register(User)
class UserAdmin(DjangoUserAdmin):  # type: ignore[type-arg]
    """Accounts with their plan, their own limits, and today's use beside what is allowed."""

    list_display = ("username", "plan", "tokens_today", "gpu_seconds_today", "generations_today", "is_active",
                    "is_staff", "last_login")  # fmt: skip
    list_filter = ("plan", "is_active", "is_staff", "date_joined")
    list_select_related = ("plan",)
    date_hierarchy = "date_joined"
    search_fields = ("username", "email", "first_name", "last_name")
    autocomplete_fields = ("plan",)
    readonly_fields = ("tokens_today", "gpu_seconds_today", "generations_today", "last_login", "date_joined")
    fieldsets = (
        (None, {"fields": ("username", "password", "email")}),
        ("Plan", {"fields": ("plan",), "description": "Without a plan the default one holds."}),
        ("Own limits", {"fields": _LIMITS, "description": "Each goes before the plan's; empty: the plan's holds."}),
        ("Today (UTC)", {"fields": ("tokens_today", "gpu_seconds_today", "generations_today")}),
        ("Rights", {"fields": ("is_active", *_RIGHTS)}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = (
        (None, {"classes": ("wide",), "fields": ("username", "plan", "usable_password", "password1", "password2")}),
    )

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Read the day's use of all shown users at once."""
        changes = super().get_changelist_instance(request)
        uses = quotas.uses_today(list(changes.result_list), now=timezone.now())
        for user in changes.result_list:
            user.use_today = uses[user.pk]
        return changes

    @admin.display(description="tokens today")
    def tokens_today(self, user: User) -> str:
        """Show tokens against the limit."""
        use = _use(user)
        return amount(use.tokens_used, use.limits.tokens_per_day, held=use.tokens_reserved)

    @admin.display(description="GPU-seconds today")
    def gpu_seconds_today(self, user: User) -> str:
        """Show GPU-seconds against the limit."""
        use = _use(user)
        return amount(use.gpu_seconds_used, use.limits.gpu_seconds_per_day, held=use.gpu_seconds_reserved)

    @admin.display(description="generations today")
    def generations_today(self, user: User) -> int:
        """Show how many were accepted."""
        return _use(user).generations

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Keep rights for superusers: who may edit users could else make one of themselves."""
        return self.readonly_fields if request.user.is_superuser else (*self.readonly_fields, *_RIGHTS)

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Let only superusers change a superuser, the password above all."""
        return bool(super().has_change_permission(request, obj)) and _may_touch(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Let only superusers delete a superuser."""
        return bool(super().has_delete_permission(request, obj)) and _may_touch(request, obj)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Ask for the right to delete users alone: what hangs on them goes with them, but for the ledger."""
        listed, counts, needed, protected = super().get_deleted_objects(objs, request)
        needed = {name for name in needed if name == "user"}
        if not request.user.is_superuser and any(user.is_superuser for user in objs):
            protected = [*protected, "a superuser: only a superuser may delete one"]
        return listed, counts, needed, protected

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        """Stop and settle what runs, then delete."""
        with transaction.atomic():
            user_leaving.send(sender=User, user=obj)
            obj.delete()

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Delete one by one, each whole."""
        for user in queryset:
            self.delete_model(request, user)


@admin.register(Plan)
class PlanAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Plans; empty limits mean no limit."""

    list_display = ("name", "lane", "weight", *_LIMITS, "num_users", "is_default")
    list_filter = ("lane",)
    search_fields = ("name",)
    readonly_fields = ("is_default",)
    actions = ("make_default",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Plan]:
        """Count the users along."""
        return super().get_queryset(request).annotate(num_users=Count("users"))

    @admin.display(description="users", ordering="num_users")
    def num_users(self, plan: Any) -> int:
        """Show how many users have it."""
        return int(plan.num_users)

    @admin.action(description="Make the default plan", permissions=["change"])
    def make_default(self, request: HttpRequest, queryset: QuerySet[Plan]) -> None:
        """Give accounts without a plan this one."""
        plan = queryset.first()
        if queryset.count() != 1 or plan is None:
            self.message_user(request, "Select exactly one plan.", messages.ERROR)
            return
        with transaction.atomic():
            Plan.objects.filter(is_default=True).update(is_default=False)
            Plan.objects.filter(pk=plan.pk).update(is_default=True)
        self.message_user(request, f"{plan} is the default plan now.", messages.SUCCESS)


class NewKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    """Whom the key acts as, its name, and what it may do."""

    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {meaning}") for scope, meaning in keys.SCOPES.items()],
        widget=forms.CheckboxSelectMultiple, required=False, help_text="none: everything its user may do",
    )  # fmt: skip

    class Meta:
        model = ApiKey
        fields = ("user", "name", "scopes")

    def clean(self) -> dict[str, Any]:
        """Ask the same rules as everywhere."""
        fields: dict[str, Any] = super().clean() or {}
        if fields.get("user") and fields.get("name"):
            try:
                keys.check(user=fields["user"], name=fields["name"], scopes=fields.get("scopes", []))
            except Refused as refused:
                raise ValidationError(refused.message) from refused
        return fields


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """Keys: made here and shown once, then only revoked."""

    form = NewKeyForm
    list_display = ("prefix", "name", "user", "scopes", "created_at", "last_used_at", "revoked_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter), "created_at")
    list_select_related = ("user",)
    search_fields = ("name", "prefix", "user__username")
    date_hierarchy = "created_at"
    autocomplete_fields = ("user",)
    actions = ("revoke",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Let make keys who has the right."""
        return bool(admin.ModelAdmin.has_add_permission(self, request))

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        """Show all but the digest."""
        shown = ("prefix", "name", "user", "scopes", "created_at", "last_used_at", "revoked_at")
        return ("user", "name", "scopes") if obj is None else shown

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Make the key and show it, this once."""
        made, plaintext = keys.create(user=obj.user, name=obj.name, scopes=obj.scopes)
        obj.__dict__.update(made.__dict__)
        self.message_user(request, f"Copy the key now, it is not shown again: {plaintext}", messages.WARNING)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Let revoke who may change keys."""
        return bool(request.user.has_perm("accounts.change_apikey"))

    @admin.action(description="Revoke", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        """End the keys for good."""
        for key in queryset.select_related("user"):
            keys.revoke(user=key.user, key_id=key.pk)
        self.message_user(request, "Revoked. Who uses these keys is refused from now on.", messages.SUCCESS)


@admin.register(DailyUse)
class DailyUseAdmin(ReadOnlyAdmin):
    """What each user spent and holds, per UTC day."""

    list_display = ("day", "user", "tokens_used", "tokens_reserved", "gpu_seconds_used", "gpu_seconds_reserved",
                    "generations")  # fmt: skip
    list_filter = ("day",)
    list_select_related = ("user",)
    search_fields = ("user__username",)
    date_hierarchy = "day"


@admin.register(Reservation)
class ReservationAdmin(ReadOnlyAdmin):
    """What running generations hold; none is left when nothing runs."""

    list_display = ("generation_id", "user", "day", "tokens", "gpu_seconds", "created_at")
    list_filter = ("day",)
    list_select_related = ("user",)
    search_fields = ("user__username",)
    date_hierarchy = "created_at"


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnlyAdmin):
    """The ledger: one line per generation, kept when its user goes."""

    list_display = ("created_at", "username", "model", "prompt_tokens", "completion_tokens", "gpu_seconds")
    list_filter = ("model", "created_at")
    search_fields = ("username",)
    date_hierarchy = "created_at"


def _use(user: Any) -> UseToday:
    use: UseToday = getattr(user, "use_today", None) or quotas.use_today(user)
    return use


def _may_touch(request: HttpRequest, user: User | None) -> bool:
    return user is None or not user.is_superuser or bool(request.user.is_superuser)
