//! The archive when others, and the machine, do what they may: leases that are not renewed, processes
//! that are killed at any request, sources that have rotted, two who take turns at every request.

mod interrupted;
mod leases;
mod scene;
mod sources;
mod staging;
mod turns;
