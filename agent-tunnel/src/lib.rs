//! stub
pub mod enroll;
pub mod enrollment;
pub mod failure;
pub mod gate;
pub mod host;
pub mod kill_switch;
pub mod policy;
pub mod settings;
