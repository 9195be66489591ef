"""How both sides speak to Redis: Celery's settings, the channel layer's, and a client's.

Plain dictionaries, because the contract imports no library. Reasons stand beside each value.
"""

from __future__ import annotations

from typing import Any, Final

from chatproject.contract.names import PRIORITY, Lane

# socket_timeout: redis-py 8 has 5 s by default, shorter than Celery's and channels_redis' blocking reads.
TRANSPORT_OPTIONS: Final[dict[str, Any]] = {
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    "health_check_interval": 5,
    "priority_steps": sorted(PRIORITY.values()),
    "sep": "\x06\x16",
    "queue_order_strategy": "priority",
}
# Seconds between a consumer's tries to reach Redis; Celery's own are 2, 4, ... 30 and cannot be set.
RECONNECT: Final[dict[str, float]] = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 1.0}


def celery_settings() -> dict[str, Any]:
    """Return the Celery settings that both sides share.

    A ticket is acknowledged early and never prefetched: the claim, the lease and the fence are ours, and a worker
    whose Redis goes away holds nothing unacknowledged (celery 5.7 exits then).
    """
    return {
        "task_acks_late": False,
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_prefetch_count_reduction": False,
        "task_ignore_result": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_accept_content": ["json"],
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A Redis that refuses writes (full disk, full memory) is away: without this its refusal ends the process.
        "broker_channel_error_retry": True,
        "broker_transport_options": dict(TRANSPORT_OPTIONS),
        "task_queue_max_priority": 9,
        "task_default_priority": PRIORITY[Lane.INTERACTIVE],
        # That event carries the ticket's id, and Flower would show a task that never starts.
        "task_send_sent_event": False,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
    }


def priority_of(lane: Lane, *, broker_url: str) -> int:
    """Return the message priority of ``lane``: Redis serves 0 first, RabbitMQ the highest."""
    priority = PRIORITY[lane]
    return 9 - priority if broker_url.startswith(("amqp", "pyamqp")) else priority


def redis_lists(queue: str) -> list[str]:
    """Return the Redis lists in which the tickets of ``queue`` lie, one per priority."""
    return [redis_list(queue, priority) for priority in sorted(PRIORITY.values())]


def redis_list(queue: str, priority: int) -> str:
    """Return the Redis list in which the tickets of ``queue`` with that priority lie."""
    return queue if priority == 0 else f"{queue}{TRANSPORT_OPTIONS['sep']}{priority}"


def channel_layer(redis_url: str) -> dict[str, Any]:
    """Return Django's CHANNEL_LAYERS entry; the worker builds the same layer from its CONFIG."""
    return {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {
            "hosts": [
                {
                    "address": redis_url,
                    "socket_timeout": 30,
                    "socket_connect_timeout": 3,
                    "health_check_interval": 15,
                }
            ],
            "prefix": "chat",
            # One message per step and process: far below this; what is lost beyond it comes back from the log.
            "capacity": 4000,
        },
    }
