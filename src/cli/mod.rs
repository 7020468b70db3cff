//! the command line and the control socket behind it.
