"""Names of log events, `noun.verb_past`. Facts are fields of the event, never part of its name.

Each one is described in docs/reference/logs.md.
"""

from __future__ import annotations

from typing import Final

# --- the process
PROCESS_STARTED: Final = "process.started"
PROCESS_STOPPED: Final = "process.stopped"
SIGNAL_RECEIVED: Final = "signal.received"
TASK_DIED: Final = "task.died"
SERVER_STARTED: Final = "server.started"
SERVER_STOPPED: Final = "server.stopped"
WORKER_STARTED: Final = "worker.started"
WORKER_DIED: Final = "worker.died"

# --- every RPC, once
RPC_FINISHED: Final = "rpc.finished"
REFUSALS_LEFT_OUT: Final = "refusals.left_out"

# --- requests on a stream of the batch API
ISSUANCE_ISSUED: Final = "issuance.issued"
ISSUANCE_REFUSED: Final = "issuance.refused"

# --- the authority
AUTHORITY_ACTIVATED: Final = "authority.activated"
AUTHORITY_REJECTED: Final = "authority.rejected"
TRUST_PUBLISHED: Final = "trust.published"
CRLS_LOADED: Final = "crls.loaded"
TRUST_REFUSED: Final = "trust.refused"
POLICY_LOADED: Final = "policy.loaded"
POLICY_REJECTED: Final = "policy.rejected"
SERVING_CERTIFICATE_ROTATED: Final = "serving_certificate.rotated"
SERVING_CERTIFICATE_FAILED: Final = "serving_certificate.failed"
JWKS_LOADED: Final = "jwks.loaded"
JWKS_FAILED: Final = "jwks.failed"

# --- health
PROBE_FAILED: Final = "probe.failed"
CLOCK_JUMPED: Final = "clock.jumped"

# --- the ledger
LEDGER_SIGNED: Final = "ledger.signed"
LEDGER_SIGNING_FAILED: Final = "ledger.signing_failed"

# --- SVIDs
SVID_ISSUED: Final = "svid.issued"
SVID_LOADED: Final = "svid.loaded"
SVID_RENEWED: Final = "svid.renewed"
SVID_RENEWAL_FAILED: Final = "svid.renewal_failed"
SVID_EXPIRED: Final = "svid.expired"
SVID_SET_ASIDE: Final = "svid.set_aside"
RENEWAL_HINTED: Final = "renewal.hinted"
TRUST_CONNECTED: Final = "trust.connected"
TRUST_DISCONNECTED: Final = "trust.disconnected"
TRUST_TAKEN: Final = "trust.taken"
TRUST_NOT_KEPT: Final = "trust.not_kept"
BATCH_NOT_OFFERED: Final = "batch.not_offered"
BUNDLE_CHANGED: Final = "bundle.changed"
FEDERATION_FAILED: Final = "federation.failed"

# --- SDS
SDS_STREAM_OPENED: Final = "sds.stream_opened"
SDS_STREAM_CLOSED: Final = "sds.stream_closed"
SDS_PUSHED: Final = "sds.pushed"
SDS_ACKED: Final = "sds.acked"
SDS_NACKED: Final = "sds.nacked"
SDS_WITHHELD: Final = "sds.withheld"
SDS_TYPE_IGNORED: Final = "sds.type_ignored"

# --- the Workload API
WORKLOAD_PUSHED: Final = "workload.pushed"

# --- files and who is told of them
OUTPUT_WRITTEN: Final = "output.written"
OUTPUT_FAILED: Final = "output.failed"
HOOK_FINISHED: Final = "hook.finished"
HOOK_FAILED: Final = "hook.failed"
