//! The adapter against servers on this host: moto for EC2, a strict one of our own for the EBS direct
//! interface. The real SDK speaks to both over HTTP.

mod aws;
mod ebs;
mod interrupted;
mod publish;
mod refused;
mod site;
mod volume;
