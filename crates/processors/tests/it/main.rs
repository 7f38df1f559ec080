//! Tests of the crate from outside, against what the reference implementations give (`tests/tools` makes the fixtures).

#[cfg(test)]
mod audio;
#[cfg(test)]
mod blip;
#[cfg(test)]
mod chat;
#[cfg(test)]
mod decode;
#[cfg(test)]
mod deepseek_vl_v2;
#[cfg(test)]
mod detail;
#[cfg(test)]
mod fast_vlm;
#[cfg(test)]
mod idefics3;
#[cfg(test)]
mod moondream;
#[cfg(test)]
mod qwen2_vl;
#[cfg(test)]
mod resize;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tokenizer_parts;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod video;
