// FOLDER DIGEST PIXELS (width, height, then 0xAARRGGBB as decimal numbers): the input's shape and values, in lines.

import ai.onnxruntime.OrtEnvironment
import java.io.File

fun main(arguments: Array<String>) {
    val environment = OrtEnvironment.getEnvironment()
    val (session, manifest) = load(environment, File(arguments[0]), arguments[1])
    val numbers = File(arguments[2]).readText().split(" ").map { it.toInt() }
    val input = prepare(environment, numbers.drop(2).toIntArray(), numbers[0], numbers[1], manifest)
    println(session.model.size)
    println(input.shape.joinToString(" "))
    println((0 until input.values.remaining()).joinToString(" ") { input.values.get(it).toString() })
}
