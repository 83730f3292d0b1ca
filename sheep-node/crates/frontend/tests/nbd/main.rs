//! The NBD connection, driven byte by byte.

mod client;
mod commands;
mod ending;
mod flow;
mod fuzz;
mod options;
mod splits;
