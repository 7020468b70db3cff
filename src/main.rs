//! The roof: wires the rooms and does nothing else.
fn main() {}
