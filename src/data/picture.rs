//! One image file to bytes, and the resize of METHODS 2.2.

use std::io::Cursor;

use rayon::prelude::*;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Images;
use crate::error::{Error, Result};

/// No side may be longer. Everything we train on is far smaller; a header that claims more is damaged or a trap.
const MAX_SIDE: usize = 8192;

/// An image on its way into a data set, three channels.
pub struct Picture {
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
    /// (H, W, 3)
    pub pixels: Vec<u8>,
}

/// Decode a PNG, JPEG or PPM/PGM file, recognised by its content. Grey becomes three equal channels, transparency is
/// dropped. `shown` names the file in messages. Damage anywhere refuses the file.
pub fn decode(bytes: &[u8], shown: &str) -> Result<Picture> {
    let decoded = match bytes {
        [0x89, b'P', b'N', b'G', ..] => png(bytes),
        [0xff, 0xd8, ..] => jpeg(bytes),
        [b'P', b'5' | b'6', ..] => ppm(bytes),
        [] => Err("an empty file".into()),
        _ => Err("neither a PNG nor a JPEG nor a binary PPM file".into()),
    };
    decoded.map_err(|why| Error::Data {
        path: shown.into(),
        why: format!("{why}; replace this file by an undamaged copy"),
    })
}

fn sides(h: usize, w: usize) -> Result<(), String> {
    let allowed = 1..=MAX_SIDE;
    if allowed.contains(&h) && allowed.contains(&w) {
        return Ok(());
    }
    Err(format!("its header claims {h}x{w} pixels, and sides from 1 to {MAX_SIDE} are read"))
}

/// Repeat or drop channels until there are three. `c` is 1 (grey), 2 (grey, alpha), 3 or 4 (alpha).
fn to_rgb(pixels: Vec<u8>, c: usize) -> Vec<u8> {
    match c {
        1 | 2 => pixels.chunks_exact(c).flat_map(|p| [p[0]; 3]).collect(),
        4 => pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        _ => pixels,
    }
}

fn png(bytes: &[u8]) -> Result<Picture, String> {
    let broken = |e: png::DecodingError| format!("a damaged PNG file ({e})");
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let head = decoder.read_header_info().map_err(broken)?;
    let (w, h) = (head.width as usize, head.height as usize);
    sides(h, w)?;
    let mut reader = decoder.read_info().map_err(broken)?;
    let size = reader.output_buffer_size().ok_or("a PNG file too large to read")?;
    let mut pixels = vec![0; size];
    reader.next_frame(&mut pixels).map_err(broken)?;
    reader.finish().map_err(broken)?;
    let c = reader.output_color_type().0.samples();
    Ok(Picture { h, w, pixels: to_rgb(pixels, c) })
}

fn jpeg(bytes: &[u8]) -> Result<Picture, String> {
    let broken = |e: zune_jpeg::errors::DecodeErrors| format!("a damaged JPEG file ({e})");
    // Strict: otherwise what is missing is filled in with grey.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(Cursor::new(bytes), options);
    let pixels = decoder.decode().map_err(broken)?;
    let (w, h) = decoder.dimensions().ok_or("a JPEG file without a size")?;
    Ok(Picture { h, w, pixels })
}

/// Binary PPM (P6) and PGM (P5) of 8 bits: magic, width, height, 255, one white space, pixels.
fn ppm(bytes: &[u8]) -> Result<Picture, String> {
    let mut at = 2;
    let mut number = || {
        let skip = |at: &mut usize, f: &dyn Fn(u8) -> bool| {
            while bytes.get(*at).is_some_and(|b| f(*b)) {
                *at += 1
            }
        };
        skip(&mut at, &|b| b.is_ascii_whitespace());
        while bytes.get(at) == Some(&b'#') {
            skip(&mut at, &|b| b != b'\n');
            skip(&mut at, &|b| b.is_ascii_whitespace());
        }
        let start = at;
        skip(&mut at, &|b| b.is_ascii_digit());
        let digits = bytes.get(start..at).and_then(|d| std::str::from_utf8(d).ok()).unwrap_or_default();
        // A number too long for the machine is absurd, not unreadable.
        if digits.is_empty() {
            Err("a PPM file without a readable header".to_string())
        } else {
            Ok(digits.parse().unwrap_or(usize::MAX))
        }
    };
    let (w, h, white) = (number()?, number()?, number()?);
    sides(h, w)?;
    if white != 255 {
        return Err(format!("a PPM file with values up to {white}; only 255 is read"));
    }
    let c = if bytes[1] == b'6' { 3 } else { 1 };
    let content = bytes.get(at + 1..).unwrap_or_default();
    if content.len() < h * w * c {
        return Err(format!(
            "truncated: {} bytes follow the PPM header, {h}x{w}x{c} = {} are needed",
            content.len(),
            h * w * c
        ));
    }
    Ok(Picture { h, w, pixels: to_rgb(content[..h * w * c].to_vec(), c) })
}

impl Picture {
    /// Columns x1 to x2 and rows y1 to y2, the second of each excluded; they are inside of the picture.
    pub fn crop(&self, [x1, y1, x2, y2]: [usize; 4]) -> Picture {
        let rows = self.pixels.chunks_exact(self.w * 3).take(y2).skip(y1);
        Picture { h: y2 - y1, w: x2 - x1, pixels: rows.flat_map(|row| &row[x1 * 3..x2 * 3]).copied().collect() }
    }

    /// Bilinear with antialiasing: a triangle filter, widened by the ratio when making smaller; rows first, then
    /// columns, each rounded to u8. The fixed-point arithmetic is that of Pillow up to 9.5, so the bytes
    /// are too; later versions take the columns of tall images first, which changes a fifth of the values by one.
    pub fn resize(self, h: usize, w: usize) -> Picture {
        let mut now = self;
        if now.w != w {
            let filter = Filter::new(now.w, w);
            let pixels = now.pixels.chunks_exact(now.w * 3).flat_map(|row| filter.apply(row, 3)).collect();
            now = Picture { h: now.h, w, pixels };
        }
        if now.h != h {
            // All columns at once: a "pixel" of this filter is a whole row.
            now = Picture { h, w, pixels: Filter::new(now.h, h).apply(&now.pixels, w * 3) };
        }
        now
    }
}

/// For each output the first input and the weights, in units of 2^-22.
struct Filter(Vec<(usize, Vec<i32>)>);

impl Filter {
    fn new(from: usize, to: usize) -> Filter {
        let scale = from as f64 / to as f64;
        let wide = scale.max(1.0);
        let weights = |i: usize| {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - wide + 0.5).max(0.0) as usize;
            let last = ((centre + wide + 0.5) as usize).min(from);
            let raw: Vec<f64> =
                (first..last).map(|x| (1.0 - ((x as f64 - centre + 0.5) / wide).abs()).max(0.0)).collect();
            let sum: f64 = raw.iter().sum();
            (first, raw.iter().map(|w| (0.5 + w / sum * f64::from(1 << 22)) as i32).collect())
        };
        Filter((0..to).map(weights).collect())
    }

    /// `line` holds as many groups of `group` values as there are inputs.
    fn apply(&self, line: &[u8], group: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() * group);
        for (first, weights) in &self.0 {
            for k in 0..group {
                let inputs = line.iter().skip(first * group + k).step_by(group);
                let sum: i32 = inputs.zip(weights).map(|(v, w)| i32::from(*v) * w).sum();
                out.push(((sum + (1 << 21)) >> 22).clamp(0, 255) as u8);
            }
        }
        out
    }
}

/// One image per label, drawn into its place by `draw(number, place)` on all threads.
pub fn stack(
    [h, w, c]: [usize; 3],
    labels: Vec<u32>,
    draw: impl Fn(usize, &mut [u8]) -> Result<()> + Sync,
) -> Result<Images> {
    let n = labels.len();
    let mut pixels = vec![0; n * h * w * c];
    pixels.par_chunks_exact_mut((h * w * c).max(1)).enumerate().try_for_each(|(i, place)| draw(i, place))?;
    Ok(Images { n, h, w, c, pixels, labels })
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        decode(bytes, "class/picture").err().expect("this must be refused").to_string()
    }

    #[test]
    fn resizing_gives_the_bytes_of_pillow() {
        // From tests/fixtures/pictures.py: smaller, larger, one side only, one side much smaller.
        for ([h, w], [to_h, to_w], sum) in [
            ([50, 37], [32, 32], "9c330569678b71edc0a57c0a4faff192014210ba3ceb826973e6b416d2d8740b"),
            ([15, 20], [32, 32], "5ec2530d4763da428eb96e26c5bf753153b2ab2216151142488d086349001095"),
            ([250, 31], [32, 32], "17888a9ca7423bcfbf7f22309bef412e23a824af815a10f3b456d3742b2fe6ce"),
            ([32, 40], [32, 48], "235aefcf4a1d4b5a5b347665fd51c1360e4cdab260c2483edc0bce496010d7b0"),
        ] {
            let pixels = (0..h * w * 3).map(|i| ((i * i * 7 + i / 5) / 16 % 256) as u8).collect();
            let image = Picture { h, w, pixels }.resize(to_h, to_w);
            assert_eq!(image.pixels.len(), to_h * to_w * 3);
            assert_eq!(super::super::hex(&Sha256::digest(&image.pixels)), sum, "{h}x{w} to {to_h}x{to_w}");
        }
    }

    #[test]
    fn ppm_headers_are_read_and_absurd_ones_refused() {
        let image = decode(b"P6 # by hand\n# 2 wide\n2\t1\n255\n\x01\x02\x03\x04\x05\x06", "x").unwrap();
        assert_eq!((image.h, image.w, &image.pixels[..]), (1, 2, &[1, 2, 3, 4, 5, 6][..]));
        assert_eq!(decode(b"P5 1 2 255 \x07\x09", "x").unwrap().pixels, [7, 7, 7, 9, 9, 9]);
        for (bytes, words) in [
            (&b"P6 4000000000 4000000000 255 abc"[..], "4000000000x4000000000 pixels"),
            (b"P6 99999999999999999999999 1 255 abc", "sides from 1 to 8192"),
            (b"P6 0 5 255 ", "sides from 1 to 8192"),
            (b"P6 8000 8000 255 abc", "truncated: 3 bytes"),
            (b"P6 1 1 65535 abcdef", "only 255"),
            (b"P6 1", "readable header"),
            (b"P6", "readable header"),
            (b"P6 1 1 255", "truncated: 0 bytes"),
            (b"", "an empty file"),
            (b"GIF89a", "neither a PNG nor a JPEG"),
        ] {
            let message = refusal(bytes);
            assert!(message.contains(words) && message.contains("class/picture"), "{message}");
        }
    }

    #[test]
    fn jpeg_is_decoded_in_colour_and_grey_and_refused_when_cut() {
        for (name, grey) in [("colour", false), ("grey", true)] {
            let bytes = std::fs::read(format!("tests/fixtures/{name}.jpg")).unwrap();
            let image = decode(&bytes, "x").unwrap();
            assert_eq!((image.h, image.w, image.pixels.len()), (64, 64, 64 * 64 * 3));
            // Pixel (y, x) was 4x, 4y, 2(x + y) before compression; grey is their weighted sum.
            for (i, p) in image.pixels.chunks_exact(3).enumerate() {
                let (y, x) = ((i / 64) as f64, (i % 64) as f64);
                let rgb = [4.0 * x, 4.0 * y, 2.0 * (x + y)];
                let luma = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
                for (v, want) in p.iter().zip(if grey { [luma; 3] } else { rgb }) {
                    assert!((f64::from(*v) - want).abs() < 20.0, "{name} ({y}, {x}): {v} for {want}");
                }
            }
            for cut in [3, 100, bytes.len() / 2, bytes.len() - 40] {
                assert!(refusal(&bytes[..cut]).contains("JPEG"), "cut at {cut}");
            }
        }
    }

    #[test]
    fn png_of_every_kind_becomes_three_channels() {
        use png::{BitDepth, ColorType};
        let encode = |color, depth, data: &[u8]| {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
            encoder.set_color(color);
            encoder.set_depth(depth);
            encoder.write_header().unwrap().write_image_data(data).unwrap();
            bytes
        };
        let (eight, sixteen) = (BitDepth::Eight, BitDepth::Sixteen);
        for (color, depth, data, want) in [
            (ColorType::Grayscale, eight, &[5, 6][..], [5, 5, 5, 6, 6, 6]),
            (ColorType::Grayscale, BitDepth::One, &[0b0100_0000], [0, 0, 0, 255, 255, 255]),
            (ColorType::GrayscaleAlpha, eight, &[5, 0, 6, 255], [5, 5, 5, 6, 6, 6]),
            (ColorType::Rgb, eight, &[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
            (ColorType::Rgb, sixteen, &[1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0], [1, 2, 3, 4, 5, 6]),
            (ColorType::Rgba, eight, &[1, 2, 3, 0, 4, 5, 6, 9], [1, 2, 3, 4, 5, 6]),
        ] {
            let bytes = encode(color, depth, data);
            assert_eq!(decode(&bytes, "x").unwrap().pixels, want, "{color:?} {depth:?}");
            // A flipped bit in the pixels fails the checksum; a cut anywhere is noticed.
            let mut flipped = bytes.clone();
            flipped[45] ^= 4;
            assert!(refusal(&flipped).contains("a damaged PNG file"));
            assert!(refusal(&bytes[..bytes.len() - 20]).contains("a damaged PNG file"));
        }
    }
}
