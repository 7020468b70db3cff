//! Docker's volume plugin protocol on a Unix socket.
