//! Launch templates: a version for each of our machine images.

use aws_sdk_ec2::operation::create_launch_template_version::CreateLaunchTemplateVersionOutput;
use aws_sdk_ec2::operation::modify_launch_template::ModifyLaunchTemplateOutput;
use aws_sdk_ec2::types::{
    LaunchTemplateTagSpecification, LaunchTemplateTagSpecificationRequest, LaunchTemplateVersion,
    RequestLaunchTemplateData, ResourceType, Tag,
};
use vireo_model::ImageName;

use crate::ami::Published;
use crate::calls::Calls;
use crate::error::{Ec2Error, ErrorKind};
use crate::snapshot::PAGE;
use crate::tags;

/// What a dry run takes for the number of a version that is not there.
const PLANNED: i64 = 0;

/// A template, by whatever it is called.
#[derive(Clone, Debug)]
struct Template {
    name: Option<String>,
    id: Option<String>,
}

impl Template {
    fn of(text: &str) -> Self {
        let is_id = text.starts_with("lt-");
        let text = text.to_owned();
        if is_id {
            Self { name: None, id: Some(text) }
        } else {
            Self { name: Some(text), id: None }
        }
    }
}

impl Calls {
    /// Has new machines of the template start from `ami`: a version of the default one with another
    /// image, and tags by which its machines are found.
    pub(crate) async fn launch_from(
        &self,
        template_name: &str,
        image: &ImageName,
        ami: &Published,
        make_default: bool,
    ) -> Result<String, Ec2Error> {
        let template = Template::of(template_name);
        let default = self.template_version(template_name, &template, "$Default").await?;
        let id = id_of(&default, template_name);
        if uses(&default, &ami.id) {
            return Ok(id);
        }
        let latest = self.template_version(template_name, &template, "$Latest").await?;
        let number = if uses(&latest, &ami.id) {
            latest.version_number.unwrap_or(PLANNED)
        } else {
            self.create_version(template_name, &template, image, ami, &default).await?
        };
        if make_default {
            self.set_default(template_name, &template, number).await?;
        }
        Ok(id)
    }

    /// The template's identity, and whether any version of it starts from the machine image.
    pub(crate) async fn template_knows(
        &self,
        template_name: &str,
        ami: &str,
    ) -> Result<(String, bool), Ec2Error> {
        let template = Template::of(template_name);
        let (mut id, mut page) = (template_name.to_owned(), None);
        loop {
            let call = || {
                let ask = self.ec2.describe_launch_template_versions();
                ask.set_launch_template_id(template.id.clone())
                    .set_launch_template_name(template.name.clone())
                    .max_results(PAGE)
                    .set_next_token(page.clone())
                    .send()
            };
            let answer = self.ask("DescribeLaunchTemplateVersions", template_name, call).await;
            let answer = answer.map_err(|error| self.no_template(template_name, error))?;
            let versions = answer.launch_template_versions.unwrap_or_default();
            id = versions.first().map_or(id, |version| id_of(version, template_name));
            if versions.iter().any(|version| uses(version, ami)) {
                return Ok((id, true));
            }
            page = answer.next_token.filter(|token| !token.is_empty());
            if page.is_none() {
                return Ok((id, false));
            }
        }
    }

    /// Says what to do about a template that is not there.
    fn no_template(&self, name: &str, error: Ec2Error) -> Ec2Error {
        match error.kind() {
            ErrorKind::NotFound => self.missing_template(name),
            _ => error,
        }
    }

    fn missing_template(&self, name: &str) -> Ec2Error {
        let what = format!(
            "there is no launch template {name} at {}; make it (`aws ec2 create-launch-template`) or correct `launch-template`",
            self.place
        );
        Ec2Error::plain(ErrorKind::NotFound, what)
    }

    async fn template_version(
        &self,
        name: &str,
        template: &Template,
        version: &str,
    ) -> Result<LaunchTemplateVersion, Ec2Error> {
        let call = || {
            let ask = self.ec2.describe_launch_template_versions();
            ask.set_launch_template_id(template.id.clone())
                .set_launch_template_name(template.name.clone())
                .versions(version)
                .send()
        };
        let answer = self.ask("DescribeLaunchTemplateVersions", name, call).await;
        let answer = answer.map_err(|error| self.no_template(name, error))?;
        let version = answer.launch_template_versions.unwrap_or_default().pop();
        version.ok_or_else(|| self.missing_template(name))
    }

    async fn create_version(
        &self,
        name: &str,
        template: &Template,
        image: &ImageName,
        ami: &Published,
        default: &LaunchTemplateVersion,
    ) -> Result<i64, Ec2Error> {
        let source = default.version_number().unwrap_or(1);
        let had = default.launch_template_data().map(|data| data.tag_specifications());
        let data = RequestLaunchTemplateData::builder()
            .image_id(&ami.id)
            .set_tag_specifications(Some(tag_specifications(had.unwrap_or_default(), image, ami)))
            .build();
        // The same for every try: a crash makes no second version.
        let text = format!("{} {} {source}", id_of(default, name), ami.id);
        let token = vireo_model::Digest::of(text.as_bytes()).to_string();
        let call = || {
            let create = self.ec2.create_launch_template_version();
            create
                .client_token(&token)
                .set_launch_template_id(template.id.clone())
                .set_launch_template_name(template.name.clone())
                .source_version(source.to_string())
                .version_description(format!("{image}@{}", ami.version))
                .launch_template_data(data.clone())
                .send()
        };
        let instead = || {
            let version = LaunchTemplateVersion::builder().version_number(PLANNED).build();
            CreateLaunchTemplateVersionOutput::builder().launch_template_version(version).build()
        };
        let what = format!("{name} with {}, else as version {source}", ami.id);
        let answer = self.change("CreateLaunchTemplateVersion", what, instead, call).await?;
        let number = answer.launch_template_version.and_then(|version| version.version_number);
        number.ok_or_else(|| Ec2Error::refused("CreateLaunchTemplateVersion gave no number"))
    }

    async fn set_default(
        &self,
        name: &str,
        template: &Template,
        number: i64,
    ) -> Result<(), Ec2Error> {
        let call = || {
            let modify = self.ec2.modify_launch_template();
            modify
                .set_launch_template_id(template.id.clone())
                .set_launch_template_name(template.name.clone())
                .default_version(number.to_string())
                .send()
        };
        let instead = || ModifyLaunchTemplateOutput::builder().build();
        let number = if number == PLANNED { "(new)".to_owned() } else { number.to_string() };
        let what = format!("{name}: version {number} is the default");
        self.change("ModifyLaunchTemplate", what, instead, call).await.map(drop)
    }
}

/// The identity of the template that it is a version of; the name, where that is not said.
fn id_of(version: &LaunchTemplateVersion, name: &str) -> String {
    version.launch_template_id().unwrap_or(name).to_owned()
}

fn uses(version: &LaunchTemplateVersion, ami: &str) -> bool {
    version.launch_template_data().and_then(|data| data.image_id()) == Some(ami)
}

/// The template's tags with ours among those of instances. A version's list replaces that of the version
/// that it is made from, so the others have to be repeated.
fn tag_specifications(
    had: &[LaunchTemplateTagSpecification],
    image: &ImageName,
    ami: &Published,
) -> Vec<LaunchTemplateTagSpecificationRequest> {
    let ours: Vec<Tag> = tags::of_version(image, ami.version, ami.tree)
        .into_iter()
        .map(|(key, value)| tags::tag(key, value))
        .collect();
    let is_ours = |tag: &&Tag| ours.iter().any(|own| own.key() == tag.key());
    let instance = ResourceType::Instance;
    let (mut all, mut instances) = (Vec::new(), Vec::new());
    for specification in had {
        let kept = specification.tags().iter().cloned();
        if specification.resource_type() == Some(&instance) {
            instances.extend(kept.filter(|tag| !is_ours(&tag)));
        } else {
            let request = LaunchTemplateTagSpecificationRequest::builder();
            let kind = specification.resource_type().cloned();
            all.push(request.set_resource_type(kind).set_tags(Some(kept.collect())).build());
        }
    }
    instances.extend(ours.iter().cloned());
    let request = LaunchTemplateTagSpecificationRequest::builder().resource_type(instance);
    all.push(request.set_tags(Some(instances)).build());
    all
}

#[cfg(test)]
mod tests {
    use vireo_model::Digest;

    use super::*;

    #[test]
    fn a_templates_other_tags_are_kept() {
        let specification = |kind, key: &str, value: &str| {
            LaunchTemplateTagSpecification::builder()
                .resource_type(kind)
                .tags(tags::tag(key, value))
                .build()
        };
        let had = [
            specification(ResourceType::Instance, "team", "shop"),
            specification(ResourceType::Instance, tags::VERSION, "1"),
            specification(ResourceType::Volume, "team", "disk"),
        ];
        let ami = Published {
            id: "ami-2".to_owned(),
            version: 2,
            tree: Digest::of(b""),
            snapshots: Vec::new(),
            sequence: None,
            deprecated: false,
            from_disk: true,
        };
        let image = "web".parse().expect("a name");
        let all = tag_specifications(&had, &image, &ami);
        assert_eq!(all.len(), 2);
        assert_eq!(tags::value(all[0].tags(), "team"), Some("disk"));
        assert_eq!(tags::value(all[1].tags(), "team"), Some("shop"));
        assert_eq!(tags::value(all[1].tags(), tags::VERSION), Some("2"));
        assert_eq!(all[1].tags().len(), 4, "no key twice");
    }
}
