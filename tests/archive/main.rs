//! The archive over real servers, through a proxy that is slow, narrow and faulty, and through random
//! histories.

mod full_disk;
mod histories;
mod program;
mod proxy;
mod scene;
mod servers;
mod sweep;
