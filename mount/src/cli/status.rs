//! `kfs status [DIR]`: what a running mount says of itself over its control socket.
