//! The running mediator: sockets, devices' connections, and the task that drives the broker.
//!
//! - [`listen`]: accepting, TLS, limits on those who have not proved anything yet
//! - [`connection`]: the `Hello` and what each role may say
//! - [`driver`]: the broker with its clock, store and connections

mod agent;
mod allowance;
mod clocks;
mod confirm;
mod connection;
mod console;
mod credentials;
mod device;
mod driver;
mod enroll;
mod half_open;
mod listen;
mod logins;
mod looks;
pub(crate) mod mfa;
mod open;
mod refusals;
mod relay;
mod requests;
pub(crate) mod review;
mod run;
pub(crate) mod second;
mod seldom;
mod strangers;
mod twins;

pub(crate) use driver::{BrokerHandle, Driver};
pub(crate) use half_open::{Admitted, Source};
pub(crate) use logins::{
    Origin, Use,
    page::{First, Passed, Voucher},
    token_id, token_text,
};
pub(crate) use run::{Shared, run};
pub(crate) use seldom::Seldom;
