"""All SQL. One method, one transaction; values out, never rows."""

from service.store.database import Database
from service.store.datasets import NewDataset
from service.store.idempotency import IdempotencyClaim
from service.store.outbox import OutboxEntry, OutboxKind
from service.store.recording import NewPoint
from service.store.store import Store
from service.store.workers import NewWorker

__all__ = [
    "Database",
    "IdempotencyClaim",
    "NewDataset",
    "NewPoint",
    "NewWorker",
    "OutboxEntry",
    "OutboxKind",
    "Store",
]
