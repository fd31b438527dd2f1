//! Deployments: the replicas that a project requires of a base model.

mod request;
mod view;

pub use request::{DeploymentChange, NewDeployment};
pub use view::{DeploymentView, ReplicaCounts};
