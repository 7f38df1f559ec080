//! Chat templates: programs that come with a model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_processors::{ChatOptions, ChatTemplate, Clock, Content, Message};

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::parse(source, "fuzz", [("bos_token", "<s>")]) else { return };
    let user = Message { role: "user".into(), content: vec![Content::Image, Content::Text("hi".into())] };
    let conversation = [Message::text("system", "Be brief."), user];
    let options = ChatOptions { clock: Clock::At(0), ..ChatOptions::answer() };
    let _ = template.render(&conversation, template.content_form(true), "<image>", &options);
});
