"""One thing broken in one way, many times or with many watching, and the figure that issue and goal ask for.

`make chaos ARGS='--scenario redis_away'`. Each returns its figures; the table says which are at their goal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.chaos.cluster import Cluster
from tests.chaos.scenarios import cancel_race, lost_ticket, overload, redis_away, web_killed
from tests.chaos.scenarios.figures import Figure

Play = Callable[[Cluster, int], Awaitable[list[Figure]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What to play, and what the service needs for it beside the usual environment."""

    play: Play  # the cluster, the seed
    environment: dict[str, str] = field(default_factory=dict)


SCENARIOS: dict[str, Scenario] = {
    "lost_ticket": Scenario(play=lost_ticket.play),
    "redis_away": Scenario(play=redis_away.play),
    "web_killed": Scenario(play=web_killed.play, environment={"CHAT_SLOTS": "128", "CHAT_FAKE_STEP_MS": "200"}),
    "cancel_race": Scenario(play=cancel_race.play),
    "overload": Scenario(play=overload.play, environment={"CHAT_SLOTS": "1", "QUEUE_MAX_WAIT_S": "10"}),
}
