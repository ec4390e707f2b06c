//! The archive: what goes in and comes back, beside everything else, from anybody.

mod adverse;
mod check;
mod content;
mod hostile;
mod objects;
mod proof;
mod prune;
mod round_trip;
