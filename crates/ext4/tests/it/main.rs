//! The reader against images that mke2fs and debugfs make, without root; with whole, broken and
//! hostile ones.

mod awkward;
mod hostile;
mod images;
mod refused;
