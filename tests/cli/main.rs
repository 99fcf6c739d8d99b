//! The binary driven through its command line, against an endpoint on this machine.

mod concurrency;
mod docs;
mod documents;
mod folder;
mod harness;
mod mutations;
mod network;
mod options;
mod output;
mod reply;
mod save;
mod secrets;
#[path = "../support/server.rs"]
mod server;
mod usage;
