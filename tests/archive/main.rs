//! The archive over real servers, through a proxy that is slow, narrow and faulty, and through random
//! histories.

mod proxy;
