"""The Python client of the HTTP API: `Client`, and `AsyncClient` for asyncio.

from stillreel.client import Client

with Client() as client:
    job = client.submit("slow zoom in", "photo.jpg", wait=True)
    client.download(job.job_id, "photo.mp4")
"""

from stillreel.client.answers import (
    Batch,
    BatchAnswer,
    BatchResult,
    Cost,
    Delivery,
    DeliveryAttempt,
    Estimate,
    Job,
    JobPage,
    Looks,
    ModelInfo,
    MotionInfo,
    QueueWait,
    Redelivery,
    Span,
    StyleInfo,
    Upload,
    Usage,
    UsageRow,
    VideoFacts,
)
from stillreel.client.asynchronous import AsyncClient
from stillreel.client.blocking import Client
from stillreel.client.events import Event
from stillreel.client.failures import (
    ApiFailure,
    ApiUnreachable,
    DownloadDamaged,
    WaitedTooLong,
)
from stillreel.client.steps import Filters, Image, Item, Options

__all__ = [
    "ApiFailure",
    "ApiUnreachable",
    "AsyncClient",
    "Batch",
    "BatchAnswer",
    "BatchResult",
    "Client",
    "Cost",
    "Delivery",
    "DeliveryAttempt",
    "DownloadDamaged",
    "Estimate",
    "Event",
    "Filters",
    "Image",
    "Item",
    "Job",
    "JobPage",
    "Looks",
    "ModelInfo",
    "MotionInfo",
    "Options",
    "QueueWait",
    "Redelivery",
    "Span",
    "StyleInfo",
    "Upload",
    "Usage",
    "UsageRow",
    "VideoFacts",
    "WaitedTooLong",
]
