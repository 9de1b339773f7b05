//! What follows once a version is current, by the run that made it so or by a later one.

use std::time::SystemTime;

use vireo_cloud::Launchable;
use vireo_model::ImageName;

use crate::Ec2;
use crate::ami::{self, Published};
use crate::calls::Calls;
use crate::error::Ec2Error;
use crate::journal::Journal;
use crate::settings::ImageSettings;

impl Ec2 {
    /// What follows once a version is current: earlier machine images are deprecated, and snapshots that
    /// nothing came of are removed. One that fails does not keep the other from being done.
    pub(crate) async fn finish(
        &self,
        image: &ImageName,
        settings: &ImageSettings,
        journal: &mut Journal,
        published: &[Published],
    ) -> Result<Launchable, Ec2Error> {
        let current = ami::current(published)
            .ok_or_else(|| Ec2Error::refused(format!("no version of {image} is current")))?;
        let deprecated = match settings.keep {
            Some(keep) => self.calls.deprecate(published, keep, SystemTime::now()).await,
            None => Ok(()),
        };
        let removed = self.calls.remove_superseded(journal, published, current.version).await;
        deprecated.and(removed).map(|()| current.launchable(image))
    }

    /// Does what follows from what is current and was not done: a run ended before it, lacked a right, or
    /// the settings asked for less then.
    pub(crate) fn settle_image(&self, image: &ImageName) -> Result<(), Ec2Error> {
        let settings = self.settings.image(image)?;
        let mut journal = self.journal(image)?;
        self.block_on(async {
            let published = self.calls.published(image).await?;
            let Some(current) = ami::current(&published) else { return Ok(()) };
            if let Some(template) = &settings.launch_template {
                self.settle_template(template, image, current, settings, &mut journal).await?;
            }
            self.finish(image, settings, &mut journal, &published).await.map(drop)
        })
    }

    /// Brings a launch template to the current machine image if no version of it ever was: which one is
    /// the default, or whether that version stays, is then left to people.
    async fn settle_template(
        &self,
        template: &str,
        image: &ImageName,
        current: &Published,
        settings: &ImageSettings,
        journal: &mut Journal,
    ) -> Result<(), Ec2Error> {
        // By its identity: one that was made anew under the name was brought to nothing yet.
        let (id, is_known) = self.calls.template_knows(template, &current.id).await?;
        if journal.is_templated(&id, &current.id) {
            return Ok(());
        }
        let is_half_done = journal.templating() == Some(current.id.as_str());
        if is_half_done || !is_known {
            // A crash between the version and its becoming the default is told from a choice by this.
            journal.set_templating(&current.id)?;
            self.calls.launch_from(template, image, current, settings.make_default).await?;
        }
        journal.set_templated(&id, &current.id)
    }
}

impl Calls {
    /// Removes the snapshots of versions before `version` that this host made and that nothing came of. What
    /// a machine image came of that somebody removed may have been kept on purpose.
    async fn remove_superseded(
        &self,
        journal: &mut Journal,
        published: &[Published],
        version: u64,
    ) -> Result<(), Ec2Error> {
        // Of runs that ended before they noted it.
        journal.note_registered(published.iter().flat_map(|ami| &ami.snapshots))?;
        for id in journal.unregistered_before(version) {
            match self.delete_snapshot(&id).await {
                // A machine image that is not ours starts from it.
                Err(error) if error.code() == Some("InvalidSnapshot.InUse") => {}
                outcome => {
                    outcome?;
                    journal.forget(&id)?;
                }
            }
        }
        Ok(())
    }
}
