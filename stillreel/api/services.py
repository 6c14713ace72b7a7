"""What the routes share: built once when the API starts, closed when it stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from stillreel.api.limits import RateLimits, Streams
from stillreel.api.quotas import Quotas
from stillreel.api.views import UrlMaker
from stillreel.audit import audit
from stillreel.estimates import Estimates
from stillreel.jobs.act import JobActions
from stillreel.jobs.deployments import Deployments
from stillreel.jobs.listing import JobLister
from stillreel.jobs.places import Places
from stillreel.jobs.queues import Queues
from stillreel.jobs.reader import JobReader
from stillreel.jobs.record import Record
from stillreel.jobs.submit import Submitter
from stillreel.links import Links
from stillreel.notifications import Deliveries
from stillreel.owner_store import OwnerStore
from stillreel.prefect_api import PrefectApi
from stillreel.settings import Settings
from stillreel.storage import LocalStorage, Storage


@dataclass(frozen=True)
class Services:
    """Everything that a request needs."""

    settings: Settings
    secret: bytes
    api: PrefectApi
    storage: Storage
    links: Links
    owners: OwnerStore
    deployments: Deployments
    queues: Queues
    reader: JobReader
    lister: JobLister
    submitter: Submitter
    actions: JobActions
    rates: RateLimits
    streams: Streams
    quotas: Quotas
    deliveries: Deliveries
    estimates: Estimates
    on_submitted: Callable[[Record], None]
    """Called with each new job, so that what follows need not wait for the keeper's next round."""

    def download_url(self, key: str, *, seconds: int, request: Request | None = None) -> str:
        """A URL of a stored object, signed now; of a local file at the address the caller used."""
        if isinstance(self.storage, LocalStorage):
            return self._links(request).download_url(key, seconds)
        return self.storage.download_url(key, seconds=seconds)

    def urls(self, request: Request) -> UrlMaker:
        """What makes such URLs for the caller of this request."""
        return lambda key, seconds: self.download_url(key, seconds=seconds, request=request)

    def upload_url(
        self, key: str, *, content_type: str, size: int | None, seconds: int, request: Request
    ) -> str:
        """A URL to PUT exactly this many bytes of this type to."""
        if isinstance(self.storage, LocalStorage):
            return self._links(request).upload_url(
                key, content_type=content_type, size=size, seconds=seconds
            )
        return self.storage.upload_url(key, content_type=content_type, size=size, seconds=seconds)

    def _links(self, request: Request | None) -> Links:
        if self.settings.api.api_url or request is None:
            return self.links
        return Links(str(request.base_url).rstrip("/"), self.secret)


def services_of(request: Request) -> Services:
    """The services of the app that answers this request."""
    return request.app.state.services


def build_services(
    settings: Settings, api: PrefectApi, *, on_submitted: Callable[[Record], None]
) -> Services:
    """Services on this Prefect server and this storage; opens no connection yet."""
    from stillreel.server_secret import server_secret
    from stillreel.storage import open_storage

    secret = server_secret(settings)
    links = Links(settings.api.local_url, secret)
    storage = open_storage(settings.storage, settings.host.home, links)
    queues = Queues(api)
    reader = JobReader(api, storage, Places(api))
    return Services(
        settings=settings,
        secret=secret,
        api=api,
        storage=storage,
        links=links,
        owners=OwnerStore(api, settings, audit=audit),
        deployments=Deployments(api, settings.inference, settings.api.models),
        queues=queues,
        reader=reader,
        lister=JobLister(api, reader),
        submitter=Submitter(api),
        actions=JobActions(api, reader),
        rates=RateLimits(settings.api.requests_per_minute),
        streams=Streams(settings.api.streams_max),
        quotas=Quotas(queues, settings.api),
        deliveries=Deliveries(),
        estimates=Estimates(api, reader, usd_per_hour=settings.host.host_price),
        on_submitted=on_submitted,
    )
