//! The model: a small grammar. The same question has the same answer on every instance.

/// The number of sentences between the first and the last sentence of an answer.
const MIDDLE: usize = 5;

const FIRST: [&str; 4] = [
    "You ask about “{topic}”, and a question like that has a short answer and an honest one.",
    "Let me begin with “{topic}”, because the rest of your question follows from it.",
    "Three things are worth knowing about “{topic}”, and the third one is the most useful.",
    "People have argued about “{topic}” for a long time, mostly in kitchens and on night trains.",
];
const BETWEEN: [&str; 12] = [
    "Begin with the part that you can see, and write down what it does.",
    "Then change one thing, wait, and look at the same place again.",
    "What looks like a rule is often a habit that has never been tested.",
    "A small model of it, built from paper and patience, teaches more than a long book.",
    "Most mistakes happen in the first minute, while the answer still seems obvious.",
    "If two explanations are equally good, keep the one that is easier to test.",
    "Old sailors solved a similar problem with a rope, a lantern and a calm voice.",
    "It helps to explain it aloud, because gaps are easier to hear than to see.",
    "The numbers matter less than the direction in which they move.",
    "Ask a gardener and a clockmaker, and compare their answers over dinner.",
    "On rainy days all of this takes a little longer, and that is normal.",
    "Some of it is simply luck, and luck prefers people who keep notes.",
];
const LAST: [&str; 4] = [
    "So the short answer is yes, and the honest answer is that it depends on where you stand.",
    "Try it tomorrow morning, and you will know more than this answer could tell you.",
    "That is all I know, and the rest is best found out together with a friend.",
    "If you remember only one thing of this, remember to look twice before you decide.",
];

/// Returns the words of the answer.
pub(crate) fn answer(question: &str) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(hash(question));
    let mut between = BETWEEN;
    random.shuffle(&mut between);
    let first = FIRST[random.usize(..FIRST.len())].replace("{topic}", topic(question));
    let last = LAST[random.usize(..LAST.len())];
    let sentences = std::iter::once(first.as_str()).chain(between.into_iter().take(MIDDLE)).chain([last]);
    sentences.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// Returns the longest word of a question, the last one of several.
fn topic(question: &str) -> &str {
    let words = question.split(|character: char| !character.is_alphanumeric());
    words.max_by_key(|word| word.chars().count()).filter(|word| !word.is_empty()).unwrap_or("this")
}

/// The FNV-1a hash, which is the same in every build of this program.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
