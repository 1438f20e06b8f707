//! The world as gates see it: clock, resolver, mediator.

use std::{net::IpAddr, sync::Arc, time::Duration};

use adit_protocol::{
    ids::SessionId,
    target::Target,
    wire::{self, frame::Body},
};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::{
    gate::{Boxed, Outside},
    policy::LocalTime,
    sessions::MediatorSlot,
};

/// For a name to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Names that are resolved at a time: each takes a thread.
const MAX_RESOLVING: usize = 32;
/// Addresses read of one answer.
const MAX_ADDRESSES: usize = 64;
/// For the mediator to make a target's audit record durable.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The real world.
pub(crate) struct World {
    mediator: MediatorSlot,
    resolving: Arc<Semaphore>,
}

impl World {
    pub(crate) fn new(mediator: MediatorSlot) -> Self {
        Self { mediator, resolving: Arc::new(Semaphore::new(MAX_RESOLVING)) }
    }
}

impl Outside for World {
    fn now(&self) -> LocalTime {
        LocalTime::now()
    }

    fn resolve(&self, host: String) -> Boxed<Vec<IpAddr>> {
        let resolving = self.resolving.clone();
        Box::pin(async move {
            let lookup = async {
                let _turn = resolving.acquire().await.ok()?;
                // The port is of no interest to the resolver.
                let found = tokio::net::lookup_host((host.as_str(), 0)).await.ok()?;
                Some(found.take(MAX_ADDRESSES).map(|a| a.ip()).collect())
            };
            match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
                Ok(found) => found.unwrap_or_default(),
                Err(_) => {
                    debug!(%host, "name did not resolve in time");
                    Vec::new()
                }
            }
        })
    }

    fn audit(&self, session: SessionId, target: Target) -> Boxed<bool> {
        let peer = self.mediator.peer();
        Box::pin(async move {
            let Some(peer) = peer else {
                warn!(session_id = %session, to = ?target, "target is not audited: mediator is away");
                return false;
            };
            let request = wire::TargetRequest {
                session_id: session.to_bytes(),
                target: Some(target.to_wire()),
            };
            match peer.request(Body::TargetRequest(request), AUDIT_TIMEOUT).await {
                Ok(Body::Done(_)) => true,
                Ok(_) => false,
                Err(error) => {
                    warn!(session_id = %session, to = ?target, %error, "target is not audited");
                    false
                }
            }
        })
    }

    fn report_refusal(&self, session: SessionId, target: Target, rule: &'static str) {
        self.mediator.report_refusal(session, &target, rule);
    }
}
