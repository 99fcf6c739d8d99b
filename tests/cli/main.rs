//! The binary driven through its command line, against an endpoint on this machine.

mod concurrency;
mod docs;
mod documents;
mod folder;
mod harness;
mod journals;
mod lost;
mod merge;
mod mutations;
mod network;
mod newcomers;
mod options;
mod others;
mod output;
mod reply;
mod save;
mod secrets;
#[path = "../support/server.rs"]
mod server;
mod stops;
mod usage;
