//! Running machines: finding them, and giving one another root volume.

use std::collections::BTreeMap;

use aws_sdk_ec2::operation::create_replace_root_volume_task::CreateReplaceRootVolumeTaskOutput;
use aws_sdk_ec2::types::{Filter, Instance, ReplaceRootVolumeTask, ReplaceRootVolumeTaskState};
use vireo_cloud::Machine;
use vireo_model::ImageName;

use crate::ami::Published;
use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind};
use crate::snapshot::PAGE;
use crate::tags;

/// Values that one filter may have: a limit of the service.
const FILTER_VALUES: usize = 200;

impl Calls {
    async fn running(&self, filter: Filter) -> Result<Vec<Instance>, Ec2Error> {
        let running = tags::filter("instance-state-name", "running");
        let mut found = Vec::new();
        let mut page = None;
        loop {
            let call = || {
                self.ec2
                    .describe_instances()
                    .filters(running.clone())
                    .filters(filter.clone())
                    .max_results(PAGE)
                    .set_next_token(page.clone())
                    .send()
            };
            let answer = self.ask("DescribeInstances", "running instances", call).await?;
            let reservations = answer.reservations.unwrap_or_default();
            found.extend(reservations.into_iter().flat_map(|of| of.instances.unwrap_or_default()));
            page = answer.next_token.filter(|token| !token.is_empty());
            if page.is_none() {
                return Ok(found);
            }
        }
    }

    /// The machines of `image` that run: those with its tag, and those that were launched from one of its
    /// machine images without a tag.
    pub(crate) async fn machines(
        &self,
        image: &ImageName,
        published: &[Published],
    ) -> Result<Vec<Machine>, Ec2Error> {
        let mut machines = BTreeMap::new();
        let ids: Vec<String> = published.iter().map(|ami| ami.id.clone()).collect();
        for some in ids.chunks(FILTER_VALUES) {
            let filter = Filter::builder().name("image-id").set_values(Some(some.to_vec())).build();
            for instance in self.running(filter).await? {
                note(&mut machines, image, &instance, published);
            }
        }
        for instance in self.running(tags::filter_image(image)).await? {
            note(&mut machines, image, &instance, published);
        }
        Ok(machines.into_values().collect())
    }

    /// Has an instance restart from a version's snapshot; its addresses and other volumes stay. Gives the
    /// identity of EC2's task, which is watched to its end.
    pub(crate) async fn replace_root(
        &self,
        instance: &str,
        ami: &Published,
        delete_replaced: bool,
    ) -> Result<String, Ec2Error> {
        let text = format!("{instance} {} {:?}", ami.id, ami.sequence);
        let token = vireo_model::Digest::of(text.as_bytes()).to_string();
        let call = || {
            let create = self.ec2.create_replace_root_volume_task();
            create
                .instance_id(instance)
                .image_id(&ami.id)
                .delete_replaced_root_volume(delete_replaced)
                .client_token(&token)
                .send()
        };
        let instead = || CreateReplaceRootVolumeTaskOutput::builder().build();
        let what = format!("{instance} restarts from {}", ami.id);
        let answer = self.change("CreateReplaceRootVolumeTask", what, instead, call).await?;
        if self.dry {
            return Ok("replacevol-(new)".to_owned());
        }
        let task =
            answer.replace_root_volume_task.and_then(|task| task.replace_root_volume_task_id);
        let task =
            task.ok_or_else(|| Ec2Error::refused("CreateReplaceRootVolumeTask gave no identity"))?;
        let look = async || self.task_is_done(&task).await;
        self.until(&format!("the end of {task}"), look).await?;
        Ok(task)
    }

    async fn task_is_done(&self, id: &str) -> Result<Option<()>, Ec2Error> {
        let call = || {
            let ask = self.ec2.describe_replace_root_volume_tasks();
            ask.replace_root_volume_task_ids(id).send()
        };
        let answer = match self.ask("DescribeReplaceRootVolumeTasks", id, call).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            outcome => outcome?,
        };
        let task = answer.replace_root_volume_tasks.unwrap_or_default().pop();
        match task.as_ref().and_then(ReplaceRootVolumeTask::task_state) {
            Some(ReplaceRootVolumeTaskState::Succeeded) => Ok(Some(())),
            Some(
                state @ (ReplaceRootVolumeTaskState::Failed
                | ReplaceRootVolumeTaskState::Failing
                | ReplaceRootVolumeTaskState::FailedDetached),
            ) => Err(Ec2Error::refused(format!(
                "{id} ended as {}; look at the instance before it is used",
                state.as_str()
            ))),
            _ => Ok(None),
        }
    }
}

fn note(
    machines: &mut BTreeMap<String, Machine>,
    image: &ImageName,
    instance: &Instance,
    published: &[Published],
) {
    let Some(name) = instance.instance_id() else { return };
    let from = published.iter().find(|ami| Some(ami.id.as_str()) == instance.image_id());
    let tags = instance.tags();
    // The tag first: an agent's update, unlike a launch, does not change the machine image.
    let version = tags::parsed(tags, tags::VERSION).or_else(|| from.map(|ami| ami.version));
    let address = instance.private_ip_address().filter(|address| !address.is_empty());
    let machine = Machine {
        name: name.to_owned(),
        image: image.clone(),
        version,
        address: address.map(str::to_owned),
    };
    machines.insert(name.to_owned(), machine);
}
