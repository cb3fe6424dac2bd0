//! A set of topics without a list of them: every topic, one topic, or the topics with a common
//! prefix.

use super::name::Topic;

/// A set of topics: every topic, one topic, or the topics with a common prefix.
///
/// ```
/// use tower_sse::{Topic, TopicFilter};
///
/// let boiler = Topic::try_from("sensors/boiler")?;
/// assert!(TopicFilter::any().matches(&boiler));
/// assert!(TopicFilter::exact("sensors/boiler").matches(&boiler));
/// assert!(TopicFilter::prefix("sensors/").matches(&boiler));
/// assert!(!TopicFilter::prefix("documents/").matches(&boiler));
/// # Ok::<(), tower_sse::InvalidName>(())
/// ```
#[doc(alias = "TopicRule")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFilter(pub(crate) Rule);

/// The rule of a filter. Tickets contain rules as JSON that instances of other versions read, so
/// the names of the variants are a format. `Any` has braces so that it is an object like the
/// others.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rule {
    Any {},
    Exact(Box<str>),
    Prefix(Box<str>),
}

impl TopicFilter {
    /// Creates a filter that matches every topic.
    #[must_use]
    pub fn any() -> Self {
        Self(Rule::Any {})
    }

    /// Creates a filter that matches one topic.
    pub fn exact(topic: impl Into<Box<str>>) -> Self {
        Self(Rule::Exact(topic.into()))
    }

    /// Creates a filter that matches the topics that start with this text.
    pub fn prefix(prefix: impl Into<Box<str>>) -> Self {
        Self(Rule::Prefix(prefix.into()))
    }

    /// Returns a filter for the topics that both filters match, or `None` if no topic can match
    /// both.
    pub(crate) fn common(&self, other: &Self) -> Option<Self> {
        // If two rules have a common topic, one of them matches all topics of the other.
        if self.covers(other) { Some(other.clone()) } else { other.covers(self).then(|| self.clone()) }
    }

    /// Returns whether this filter matches all topics that the other filter matches.
    fn covers(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Rule::Any {}, _) => true,
            (Rule::Exact(exact), Rule::Exact(other)) => exact == other,
            (Rule::Prefix(prefix), Rule::Exact(other) | Rule::Prefix(other)) => other.starts_with(&**prefix),
            (Rule::Exact(_) | Rule::Prefix(_), _) => false,
        }
    }

    /// Returns whether the filter matches this topic.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        match &self.0 {
            Rule::Any {} => true,
            Rule::Exact(exact) => **exact == *topic.as_str(),
            Rule::Prefix(prefix) => topic.as_str().starts_with(&**prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_filter_matches_the_topics_that_both_match() {
        let texts = ["", "a", "ab", "abc", "b"];
        let exact = texts.map(TopicFilter::exact);
        let prefix = texts.map(TopicFilter::prefix);
        let rules: Vec<_> = exact.into_iter().chain(prefix).chain([TopicFilter::any()]).collect();
        for (one, other) in rules.iter().flat_map(|one| rules.iter().map(move |other| (one, other))) {
            let common = one.common(other);
            for topic in ["a", "ab", "abc", "abcd", "b", "c"].map(|topic| Topic::try_from(topic).unwrap()) {
                let matches = common.as_ref().is_some_and(|common| common.matches(&topic));
                assert_eq!(matches, one.matches(&topic) && other.matches(&topic), "{one:?} {other:?} {topic}");
            }
        }
    }

    #[test]
    fn rules_have_the_json_that_instances_of_other_versions_read() {
        let rules = [TopicFilter::any().0, TopicFilter::exact("a").0, TopicFilter::prefix("b/").0];
        let json = r#"[{"any":{}},{"exact":"a"},{"prefix":"b/"}]"#;
        assert_eq!(serde_json::to_string(&rules).unwrap(), json);
        assert_eq!(serde_json::from_str::<[Rule; 3]>(json).unwrap(), rules);
    }
}
