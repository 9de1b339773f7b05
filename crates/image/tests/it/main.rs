//! Disk images as people have them: of several file systems, in qcow2, with rare features, in use,
//! damaged. With loop devices, mounts, and the file systems' own tools as judges.

mod before;
mod common;
mod corpus;
mod esp;
mod grow;
mod kernel;
mod layouts;
mod qcow2;
mod settled;
mod twice;
