//! Congestion control of direct carriers: Cubic, with a slow start that ends before the queue of
//! the slowest link overflows (HyStart++, RFC 9406), and a window that follows what is in flight.
//!
//! A channel that moves to a direct path starts anew there with all it has. Slow start left to
//! itself doubles until packets are lost, and finds out a queue later: by then several times what
//! the path holds is under way, most of that is lost, and what was lost is lost again when it is
//! sent anew. Channels are ordered, so that nothing comes out of them meanwhile: half a second and
//! more after a move, where the path itself takes 20 ms.
//!
//! Must never send more than Cubic alone would.

mod brake;

use std::{any::Any, sync::Arc, time::Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

use brake::{Brake, Growth};

/// Makes the controllers.
#[derive(Debug, Default)]
pub(crate) struct GentleConfig;

impl ControllerFactory for GentleConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::new(CubicConfig::default()).build(now, current_mtu);
        Box::new(Gentle { cubic, brake: Brake::new(now) })
    }
}

struct Gentle {
    cubic: Box<dyn Controller>,
    brake: Brake,
}

impl Controller for Gentle {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        match self.brake.handle_ack(now, sent, bytes, self.cubic.window()) {
            Growth::By(bytes) => self.cubic.on_ack(now, sent, bytes, app_limited, rtt),
            Growth::Unused => self.cubic.on_ack(now, sent, bytes, true, rtt),
            // As if a router had marked a packet: Cubic goes on from here.
            Growth::Full => self.cubic.on_congestion_event(now, now, false, 0),
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.brake.handle_end_of_acks(in_flight);
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.brake.handle_congestion();
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), brake: self.brake })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
