"""The memory ledger's deployments."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from stillhouse.search.domain import Accuracy, Deployment, Json
from stillhouse.search.states import CUT_SHORT
from stillhouse.service.db.memory_tables import MemoryTables
from stillhouse.service.db.records import as_json, not_found


class MemoryModels(MemoryTables):
    """Deployments; see ``stillhouse.search.ports.Ledger`` for what each method promises."""

    def add_deployment(self, deployment: Deployment) -> bool:
        """Stores a deployment; False when its id exists, or its job was cut short."""
        kept = replace(
            deployment, preprocess=as_json(dict(deployment.preprocess)), details=as_json(dict(deployment.details))
        )
        with self._lock:
            if deployment.job_id not in self._jobs:
                raise not_found("job", deployment.job_id)
            if self._jobs[deployment.job_id].state in CUT_SHORT:
                return False
            return self._deployments.setdefault(deployment.id, kept) is kept

    def deployment(self, deployment_id: str) -> Deployment:
        """One deployment, or NotFoundError."""
        with self._lock:
            if deployment_id not in self._deployments:
                raise not_found("model", deployment_id)
            return copy.deepcopy(self._deployments[deployment_id])

    def deployments(self, job_id: str) -> list[Deployment]:
        """Those of a job, in order of trial number."""
        with self._lock:
            found = [copy.deepcopy(d) for d in self._deployments.values() if d.job_id == job_id]
        return sorted(found, key=lambda deployment: deployment.trial_number)

    def set_test(self, deployment_id: str, test: Accuracy, details: Mapping[str, Json]) -> bool:
        """Stores the test counts once, and merges the details."""
        added = as_json(dict(details))
        with self._lock:
            deployment = self.deployment(deployment_id)
            if deployment.test is not None:
                return False
            merged = dict(deployment.details) | added
            self._deployments[deployment_id] = replace(deployment, test=test, details=merged)
            return True
